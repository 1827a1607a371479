"""The parts of ``memory_reward.py``: what is run, how a cell is run, what is read off it, and the tables."""
