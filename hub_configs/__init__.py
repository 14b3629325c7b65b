"""A folder for each checkpoint: the content of its Hub repository. Installed as ``snnzoo.hub_configs``."""
