"""Finding sound copies of what is damaged or missing, and putting them where they are read from."""
