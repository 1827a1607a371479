"""The parts of the viewer's page, as data: HTML, CSS and JavaScript, put into the page as they stand.

Invariant: ASCII only, no reference to anything outside the page, no markup made from strings (``tests/agents/viewer``).
"""
