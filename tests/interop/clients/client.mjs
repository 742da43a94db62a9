// fetch, as Node has it.
const [url, key, event] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${key}` };

async function ask(path, options = {}) {
  const answer = await fetch(url + path, { ...options, headers: { ...headers, ...options.headers } });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${answer.status} ${text}`);
  console.log(text);
  return answer;
}

const json = { "Content-Type": "application/json" };
const logged = await ask("/entries", { method: "POST", body: event, headers: json });
const index = logged.headers.get("location").split("/").pop();
await ask(`/entries/${index}`);
await ask(`/proof/inclusion?index=${index}`);
