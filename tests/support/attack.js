// A foreign page that holds no token tries everything that a browser lets it try.
async (target) => {
    const found = {};
    const attempt = async (name, work) => {
        try { found[name] = await work(); } catch (error) { found[name] = String(error.name); }
    };
    const loads = (element) => new Promise((resolve) => {
        element.onload = () => resolve("loaded");
        element.onerror = () => resolve("error");
        document.body.append(element);
        setTimeout(() => resolve("nothing"), 3000);
    });
    const made = (name, fields) => Object.assign(document.createElement(name), fields);
    for (const mode of ["cors", "no-cors"])
        await attempt(`fetch ${mode}`, async () => {
            const reply = await fetch(target, { credentials: "include", mode });
            return [reply.status, (await reply.text()).length];
        });
    await attempt("fetch with a header", () => fetch(target, { credentials: "include", headers: { "x-a": "1" } }));
    await attempt("post", async () =>
        (await fetch(target, { method: "POST", credentials: "include", mode: "no-cors", body: "a" })).status);
    await attempt("xhr", () => new Promise((resolve) => {
        const xhr = new XMLHttpRequest();
        xhr.open("GET", target);
        xhr.withCredentials = true;
        xhr.onloadend = () => resolve([xhr.status, xhr.responseText.length]);
        xhr.send();
    }));
    await attempt("img", () => loads(made("img", { src: target })));
    await attempt("script", () => loads(made("script", { src: target })));
    await attempt("module", () => loads(made("script", { src: target, type: "module", crossOrigin: "use-credentials" })));
    await attempt("style", () => loads(made("link", { rel: "stylesheet", href: target })));
    await attempt("iframe", async () => {
        const frame = made("iframe", { src: target });
        await loads(frame);
        return frame.contentDocument === null ? "closed" : frame.contentDocument.body.innerText;
    });
    await attempt("form", async () => {
        const inside = made("iframe", { name: "sink" });
        document.body.append(inside);
        const form = made("form", { action: target, method: "GET", target: "sink" });
        document.body.append(form);
        const loaded = new Promise((resolve) => { inside.onload = () => resolve(); setTimeout(resolve, 3000); });
        form.submit();
        await loaded;
        return inside.contentDocument === null ? "closed" : inside.contentDocument.body.innerText;
    });
    return found;
}
