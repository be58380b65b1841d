"""One file a claim: how it is measured, judged, put into words and drawn."""
