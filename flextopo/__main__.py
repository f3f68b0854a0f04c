"""`python -m flextopo`: the command line."""

from flextopo.cli.app import main

if __name__ == "__main__":
    main()
