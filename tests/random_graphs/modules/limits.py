"""What another module of the same user has set. Each case writes it anew, with a name and a number of its own."""

CUT = 9005
LIMIT = 9006
RAISES = bool(9007)
