// A chat page as a frontend writes it: React, `useChat` of the AI SDK, the official transport. The
// test calls `ask`; a reload resumes from what the page kept in its session storage.
import { createElement, useEffect } from "react";
import { createRoot } from "react-dom/client";
import { useChat } from "@ai-sdk/react";
import { lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";
import { TriggerChatTransport } from "@trigger.dev/sdk/chat";

let page, transport, seen;

function Chat({ messages, resume }) {
  const chat = useChat({
    id: "chat-1", transport, messages, resume, generateId: numbered(messages.length),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
  });
  useEffect(() => { page = chat; });
  return null;
}

// Straight and through the gateway, messages have the same ids.
const numbered = (count) => () => `made-${++count}`;

const pause = () => new Promise((resolve) => setTimeout(resolve, 5));
const until = async (condition) => { while (!condition()) await pause(); };
const size = () => page.messages.at(-1)?.parts.map((part) => part.text ?? "").join("").length ?? 0;
const ended = () => page.status === "ready" || page.status === "error";
const report = () => ({ messages: page.messages, status: page.status, error: page.error?.message, ...seen });

async function settled() {
  await pause();
  await until(ended);
  return report();
}

function open({ url, tokens, resume = false }) {
  const kept = resume ? JSON.parse(sessionStorage.getItem("chat")) : { messages: [] };
  seen = { minted: 0, events: [] };
  const mint = () => { seen.minted++; return tokens.length > 1 ? tokens.shift() : tokens[0]; };
  transport = new TriggerChatTransport({
    task: "my-chat",
    baseURL: url,
    accessToken: async () => mint(),
    startSession: async () => ({ publicAccessToken: mint() }),
    sessions: kept.session ? { "chat-1": kept.session } : undefined,
    onEvent: ({ type, status }) => seen.events.push(status ? `${type} ${status}` : type),
  });
  page = undefined;
  createRoot(document.body.appendChild(document.createElement("div")))
    .render(createElement(Chat, { messages: kept.messages, resume }));
  return until(() => page !== undefined);
}

const calls = {
  open,
  resume: async (call) => {
    await open({ ...call, resume: true });
    await until(() => page.status === "streaming" || page.messages.length > 1);
    return settled();
  },
  send: async ({ text }) => { await page.sendMessage({ text }); return settled(); },
  begin: async ({ text, length }) => {
    page.sendMessage({ text });
    await until(() => page.messages.at(-1)?.role === "assistant" && size() >= length);
    sessionStorage.setItem("chat", JSON.stringify({
      session: transport.getSession("chat-1"), messages: page.messages.slice(0, -1),
    }));
    return report();
  },
  stop: async () => { await transport.stopGeneration("chat-1"); return settled(); },
  regenerate: async () => { await page.regenerate(); return settled(); },
  approve: async () => {
    const part = page.messages.at(-1).parts.find((one) => one.type === "tool-weather");
    await page.addToolApprovalResponse({ id: part.approval.id, approved: true });
    await until(() => page.messages.at(-1).parts.some((one) => one.state === "output-available"));
    return settled();
  },
};

globalThis.ask = async (call, options) => JSON.parse(JSON.stringify((await calls[call](options)) ?? null));
