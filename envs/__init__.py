"""The environments: multi-goal search over generated worlds and real data sets, with its retrieval and tools.

Invariant: nothing here imports torch or transformers.
"""
