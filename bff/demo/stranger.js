// Runs in a sandboxed frame: a page of another origin that has stolen Ann's token.
addEventListener("message", async ({ data: { url, token } }) => {
  let result;
  try {
    const response = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
    result = `Another origin read the answer: ${response.status}`;
  } catch {
    result = "Blocked: the browser lets no other origin read the answer, even with a valid token.";
  }
  parent.postMessage(result, "*");
});
parent.postMessage("ready", "*");
