"""`python -m kinguin_streams` is the command `kinguin-streams`."""

from kinguin_streams.cli.main import main

main()
