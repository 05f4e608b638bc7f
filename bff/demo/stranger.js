// Runs in a sandboxed frame: a page of another origin that somehow got hold of Ann's token.
addEventListener("message", async ({ data: { url, token } }) => {
  let said;
  try {
    const response = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
    said = `Read by another origin: ${response.status}`;
  } catch {
    said = "Blocked: the browser of another origin gets nothing to read, whatever its token.";
  }
  parent.postMessage(said, "*");
});
parent.postMessage("ready", "*");
