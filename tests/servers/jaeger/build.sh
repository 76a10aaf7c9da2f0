#!/bin/sh
# Build Jaeger v2 from its Go module and print the directory it is in. Not for users: theirs is an image of a registry.
set -eu
cd "$(dirname "$0")"
# The modules number Jaeger's first version; the same tag holds the second one under cmd/jaeger: 1.76.0 is 2.13.0.
exec ../go-program.sh "$PWD" jaeger github.com/jaegertracing/jaeger/cmd/jaeger "about four minutes" \
	"-X github.com/jaegertracing/jaeger/internal/version.latestVersion=v2.13.0"
