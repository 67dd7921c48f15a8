"""``python -m reperio.cli``."""

from __future__ import annotations

from reperio.cli import main

if __name__ == "__main__":
    main()
