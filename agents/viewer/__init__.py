"""The viewer: stored episodes as one HTML file, to be stepped through turn by turn; needs no torch and no network.

``sources`` finds the files of episodes, ``content`` says what is shown of an episode, ``page`` writes the file from the
parts in ``assets/`` (plain HTML, CSS and JavaScript, put in as they are).

Invariant: whatever an episode holds is shown as text and never becomes markup, script or a request.
"""
