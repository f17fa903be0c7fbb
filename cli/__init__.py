"""The command `kinguin-streams`: one file a subcommand, plus what they share: settings, wiring, output."""
