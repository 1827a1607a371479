"""``python -m mempo_env.cli`` is ``mempo``."""

from mempo_env.cli import main

if __name__ == "__main__":
    main()
