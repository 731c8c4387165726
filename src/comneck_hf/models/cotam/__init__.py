"""CoTAM: bits go where CLIP's first layers look, and an adapter stands beside the decoded picture."""
