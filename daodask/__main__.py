"""``python -m daodask``: the command line without an installed script."""

from daodask.cli import main

# Workers of a local cluster import this module too, under another name.
if __name__ == "__main__":
    raise SystemExit(main())
