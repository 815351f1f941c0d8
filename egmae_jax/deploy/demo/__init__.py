"""A page to try a finished run: drop an image, see its class and what raises the score.

`examine` computes what is shown, without widgets; `page` draws it in a browser tab; `server` serves
it to this machine alone. `page` and `server` need NiceGUI: pip install -e '.[demo]'.
"""
