"""`python -m payagent` runs the command `payagent`.

May import: cli.
Never: anything else.
"""

from payagent.cli import main

if __name__ == "__main__":
    main()
