actor secret redis | redis-cli -x set secret
