"""A local web page that classifies an image with a finished run and explains the result.

`examine` computes what the page shows; `page` displays it in a browser tab; `server` serves the
page to this machine only. `page` and `server` need NiceGUI: pip install -e '.[demo]'.
"""
