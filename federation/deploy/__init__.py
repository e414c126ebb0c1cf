"""Deployment to edge nodes: who takes part, who may, and what each machine is given.

``sites.toml`` names the server, the sites and the experiment file, which is that of a simulation.
From it one folder is provisioned; each of its parts goes to one machine and to no other::

    authority/            stays with the operator
        sites.toml        the description, with the keys that it left out
        config.toml       the experiment with every key
        ca.key ca.crt     the certificate authority
        ledger.json       the public key of every site, and those that were revoked
    server/               goes to the server
        server.toml       addresses, sites with their partitions, revoked keys
        config.toml ca.crt
        server.crt server.key
        keys/NAME.pub     the public key of every site that may take part
    sites/NAME/           goes to the site NAME
        site.toml         its name, partition, data and the server's address
        config.toml ca.crt
        node.key node.key.pub

``server/`` and ``sites/NAME/`` further hold ``start.sh``, a systemd unit, ``compose.yaml``, and
``state/``, the one folder into which anything is written while they run.

The site's ``data`` reaches the ClientApp in Flower's node configuration, beside ``partition-id``,
and nothing else there is loaded. What all sites must know of one another's data, the number of
classes or the names of categories, stands in the experiment file.
"""
