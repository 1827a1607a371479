// Unpacks the episodes: the list at once, a block of episodes when one of them is looked at.

/** JSON from a block: base64, then gzip. */
async function unpack(id) {
  const packed = byId(id).textContent;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const KEPT_BLOCKS = 8;

class Episodes {
  constructor(index) {
    Object.assign(this, index); // title, facts, sources, rows
    this.blocks = new Map(); // block number -> promise of its episodes; the oldest falls out first
    this.byTask = new Map(); // "group" -> rows: the same task in every source, or the rollouts of a group
    for (const [at, row] of this.rows.entries()) {
      row.at = at;
      row.name = `${this.sources[row.s]}/${row.n + 1}`;
      row.right = [...row.m].filter((mark) => mark === "1").length;
      row.find = `${row.p}\n${row.g}\n${row.name}`.toLowerCase();
      if (!this.byTask.has(row.g)) this.byTask.set(row.g, []);
      this.byTask.get(row.g).push(row);
    }
  }

  /** The whole episode of a row. */
  async body(row) {
    const block = this.blocks.get(row.b) ?? unpack(`block-${row.b}`);
    this.blocks.delete(row.b);
    this.blocks.set(row.b, block);
    if (this.blocks.size > KEPT_BLOCKS) this.blocks.delete(this.blocks.keys().next().value);
    return (await block)[row.i];
  }

  /** Other rows of the same task. Groups are named by task and seed, alike in every evaluation of a run. */
  related(row) {
    return this.byTask.get(row.g).filter((other) => this.rows[other.at].p.split("\n")[0] === row.p.split("\n")[0]);
  }

  /** The row that a link names: source/number. */
  named(name) {
    return this.rows.find((row) => row.name === name);
  }
}
