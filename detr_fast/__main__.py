"""``python -m detr_fast`` is the command line ``detr-fast``."""

from detr_fast.cli import main

if __name__ == "__main__":
    main()
