# The two Python worlds of the agent image, without our program: they change with a lock file only, it with every version.
# Written for the classic builder, built without a network: the wheels come from the host, checked by hash.
#
#   /opt/andon   our program's libraries; owned by root, never on a check's path
#   /opt/venv    the user's world, first on PATH: python, pip, pytest; the same on both bases
ARG BASE=andon/base
FROM ${BASE} AS build
LABEL andon.stage=build
COPY . /build
RUN set -eu; \
    pip="$(echo /build/wheels/pip-*.whl)/pip"; \
    world() { \
        python3.11 -m venv --without-pip "$1"; \
        "$1/bin/python" -I "$pip" --disable-pip-version-check install --quiet --root-user-action ignore \
            --no-index --find-links /build/wheels --require-hashes --no-deps --no-compile -r "/build/$2.lock"; \
    }; \
    world /opt/andon agent; \
    world /opt/venv world; \
    chmod -R u=rwX,go=rX /opt; \
    # Ours is never edited in place: its .pyc need no look at the source. The user's may be, so theirs keep the time stamp.
    python3.11 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/andon; \
    python3.11 -m compileall -q -f -j 0 /opt/venv

FROM ${BASE}
COPY --from=build /opt /opt
