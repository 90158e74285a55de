"""One file per adaptation of a library to current versions: what it does, for which versions, when it can go."""
