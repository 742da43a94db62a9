#!/bin/sh
# Entry point of the image. Arguments:
#   serve [...]   bring the database's schema up to date, make the log if it is not there yet, serve (the default)
#   init          the first two of these and nothing else
#   ...           anything else is handed to muniment-server: `key create --scope append --label bootstrap`
# `init` changes nothing when the log exists, and refuses when database, key and guard do not belong together.
set -eu

if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PGPASSWORD_FILE")
    export PGPASSWORD
fi

prepare() {
    if [ -z "${MUNIMENT_ORIGIN:-}" ]; then
        echo "entrypoint: set MUNIMENT_ORIGIN to the name of the log, for example example.com/log; it can never be changed" >&2
        exit 2
    fi
    muniment-server migrate --data "$MUNIMENT_SERVER_DATA"
    muniment-server init --data "$MUNIMENT_SERVER_DATA" --origin "$MUNIMENT_ORIGIN" --kind "${MUNIMENT_KIND:-event}"
}

case "${1:-serve}" in
    serve)
        [ "$#" -eq 0 ] || shift
        prepare
        exec muniment-server serve --data "$MUNIMENT_SERVER_DATA" "$@"
        ;;
    init)
        prepare
        ;;
    *)
        exec muniment-server "$@"
        ;;
esac
