actor secret postgres > /run/row
runuser -u postgres -- psql -q -c 'create table secrets (s text)' -c '\copy secrets from stdin' < /run/row
rm /run/row
