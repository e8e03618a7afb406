"""An index made anew from the object store alone."""
