"""An agent of a few lines, no fake: it speaks the Messages API in whole replies, runs what it is told to, and ends at `submit`."""

AGENT = """
import http.client, json, os, subprocess, sys
host = os.environ["ANTHROPIC_BASE_URL"].removeprefix("http://")
assert os.environ["ANTHROPIC_API_KEY"] == "none"
task = sys.stdin.read()
messages = [{"role": "user", "content": task}]

def ask(**more):
    connection = http.client.HTTPConnection(host, timeout=30)
    request = {"model": sys.argv[1], "max_tokens": 500, "messages": messages, **more}
    connection.request("POST", "/v1/messages", json.dumps(request), {"content-type": "application/json"})
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())

if os.fork() == 0:  # a child asks as a tool would
    print("a child got", ask()[0], flush=True)
    os._exit(0)
os.wait()
for _ in range(2):
    status, reply = ask()
    if status != 200:
        sys.exit(f"status {status}: {reply['error']['message']}")
    call = reply["content"][-1]
    messages += [{"role": "assistant", "content": reply["content"]}]
    if call["name"] == "submit":
        break
    subprocess.run(call["input"]["command"], shell=True)
    messages += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}]}]
print(call["input"]["summary"])
"""
"""As mini-swe-agent works; started as `python -c AGENT MODEL`, the task on its standard input."""
