"""The same bundle behind other servers, each as its own documentation shows it. One file a server."""
