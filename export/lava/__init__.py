"""Lava and Loihi 2. Lava itself runs on Python 3.10 only, so no module here imports it unless its name says so."""
