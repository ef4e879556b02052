"""The commands: `yt8m COMMAND`, and the scripts that share their names."""
