#!/usr/bin/env bash
# Makes the token of a Ray cluster, once, and says how a shell uses it. Run: . deploy/token.sh
if ! [ -s ~/.ray/auth_token ]; then
    mkdir -p -m 700 ~/.ray
    (umask 077 && python -c "import secrets; print(secrets.token_hex(32), end='')" > ~/.ray/auth_token)
fi
chmod 600 ~/.ray/auth_token
export RAY_AUTH_MODE=token
echo "The token is in ~/.ray/auth_token, and RAY_AUTH_MODE=token is set in this shell."
