// The tokens of the page, by the name of the person. The demo mints them, as an app's server would.

export const tokens = {};

/** Fetch new tokens: those of before have expired, or are of a demo that was started again. */
export async function renew() {
  Object.assign(tokens, await (await fetch("/demo/tokens", { cache: "no-store" })).json());
}

await renew();
