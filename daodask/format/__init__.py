"""What is on disk: names, manifests, codecs, feature spaces and arrays as bytes."""
