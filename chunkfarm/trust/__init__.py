"""Who may join, who may ask, and how either is proved.

`authority` makes the farm's CA and signs; `identity` is one server's own key and certificate; `contexts`
turns it into TLS on the ports and links; `proof` shows that both sides know the join key; `keys` are those
of users; `seal` hides secrets that stand in the table; `verify` is for those who know nothing of a farm but
its CA's fingerprint; `private` keeps secret files secret.
"""
