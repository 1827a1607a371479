// What a memory gained, kept, changed and lost. A memory is a list of notes: parts between ";" or line breaks, or else
// its sentences. A note that stands in both is kept, wherever it stands; two notes that share three words in five are one
// that was changed, and are compared word by word.

const ALIKE = 0.6;
const MOST_PAIRS = 40000;
const MOST_CELLS = 250000;

function notesOf(text) {
  const parts = /[;\n]/.test(text) ? text.split(/;|\n+/) : text.split(/(?<=[.!?])\s+/);
  return parts.map((part) => part.trim()).filter(Boolean);
}

const wordsOf = (text) => text.match(/\s+|[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) ?? [];

/** How alike two lists of words are, 0 to 1 (Dice, over the multiset). */
function likeness(a, b) {
  const counts = new Map();
  let common = 0;
  for (const word of a) counts.set(word, (counts.get(word) ?? 0) + 1);
  for (const word of b) {
    const left = counts.get(word) ?? 0;
    if (left > 0) {
      common += 1;
      counts.set(word, left - 1);
    }
  }
  return a.length + b.length === 0 ? 1 : (2 * common) / (a.length + b.length);
}

/** [{kind: kept | added | changed | dropped, text, words}] : the new notes in their order, then the dropped ones. */
function compareNotes(before, after) {
  const old = notesOf(before).map((text) => ({ text, used: false }));
  const places = new Map();
  for (const note of old) {
    if (!places.has(note.text)) places.set(note.text, []);
    places.get(note.text).push(note);
  }
  const fresh = notesOf(after).map((text) => {
    const same = places.get(text)?.find((note) => !note.used);
    if (same) same.used = true;
    return { kind: same ? "kept" : "added", text };
  });
  pairChanged(old.filter((note) => !note.used), fresh.filter((note) => note.kind === "added"));
  const dropped = old.filter((note) => !note.used).map((note) => ({ kind: "dropped", text: note.text }));
  return [...fresh, ...dropped];
}

function pairChanged(old, added) {
  if (old.length * added.length > MOST_PAIRS) return; // a memory of thousands of notes: added and dropped as a whole
  const plain = (text) => wordsOf(text.toLowerCase()).filter((word) => word.trim());
  const oldWords = old.map((note) => plain(note.text));
  for (const note of added) {
    const words = plain(note.text);
    let best = -1;
    let most = ALIKE;
    for (const [k, other] of oldWords.entries()) {
      const alike = old[k].used ? 0 : likeness(words, other);
      if (alike > most || (alike === most && best < 0)) [best, most] = [k, alike];
    }
    if (best < 0) continue;
    old[best].used = true;
    note.kind = "changed";
    note.words = compareWords(old[best].text, note.text);
  }
}

/** [{kind: kept | added | dropped, text}], by the longest common subsequence of words. */
function compareWords(before, after) {
  const a = wordsOf(before);
  const b = wordsOf(after);
  if (a.length * b.length > MOST_CELLS) return [{ kind: "dropped", text: before }, { kind: "added", text: after }];
  const width = b.length + 1;
  const lengths = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const at = i * width + j;
      lengths[at] = a[i] === b[j] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
    }
  }
  const parts = [];
  const add = (kind, text) => {
    if (parts.length && parts.at(-1).kind === kind) parts.at(-1).text += text;
    else parts.push({ kind, text });
  };
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    const at = i * width + j;
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add("kept", a[i++]);
      j++;
    } else if (i < a.length && (j === b.length || lengths[at + width] >= lengths[at + 1])) add("dropped", a[i++]);
    else add("added", b[j++]);
  }
  return parts;
}
