"""`python -m payagent` runs the command `payagent`."""

from payagent.cli import main

if __name__ == "__main__":
    main()
