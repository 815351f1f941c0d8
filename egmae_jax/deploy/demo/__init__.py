"""A page to try a finished run: drop an image, see what the networks say and what raises it.

`examine` is what it shows, without widgets; `page` draws it in a browser tab; `server` lets this
machine alone see it. `page` and `server` need NiceGUI: pip install -e '.[demo]'.
"""
