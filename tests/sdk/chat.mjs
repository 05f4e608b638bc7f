// The official chat transport with the AI SDK's chat, on Node: each line of JSON on standard input is
// a call, each line of output its result. Arguments: the packages of the transport and of the AI SDK.
import { createInterface } from "node:readline";

const [sdk = "@trigger.dev/sdk", ai = "ai"] = process.argv.slice(2);
const { TriggerChatTransport } = await import(`${sdk}/chat`);
const { AbstractChat, lastAssistantMessageIsCompleteWithApprovalResponses } = await import(ai);

class State {
  status = "ready";
  error = undefined;
  constructor(messages) { this.messages = messages; }
  pushMessage = (message) => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => {
    this.messages = [...this.messages.slice(0, index), structuredClone(message), ...this.messages.slice(index + 1)];
  };
  snapshot = (value) => structuredClone(value);
}
class Chat extends AbstractChat {
  constructor({ messages, ...init }) { super({ ...init, state: new State(messages ?? []) }); }
}

let chat, transport, seen, running;

const pause = () => new Promise((resolve) => setTimeout(resolve, 5));
const report = () => ({
  messages: chat.messages,
  status: chat.status,
  error: chat.error?.message,
  session: transport.getSession("chat-1"),
  ...seen,
});

const calls = {
  // Tokens are handed out in their order; the last one again and again.
  open: ({ config, tokens, session, messages, clientData }) => {
    let numbers = messages?.length ?? 0;
    seen = { minted: 0, started: 0, events: [] };
    const mint = () => { seen.minted++; return tokens.length > 1 ? tokens.shift() : tokens[0]; };
    transport = new TriggerChatTransport({
      task: "my-chat",
      baseURL: config.baseURL,
      accessToken: async () => mint(),
      startSession: async () => { seen.started++; return { publicAccessToken: mint() }; },
      clientData,
      sessions: session ? { "chat-1": session } : undefined,
      onEvent: ({ type, status }) => seen.events.push(status ? `${type} ${status}` : type),
    });
    chat = new Chat({
      id: "chat-1", transport, messages, generateId: () => `made-${++numbers}`,
      sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
    });
  },
  send: async ({ text }) => { await chat.sendMessage({ text }); return report(); },
  regenerate: async () => { await chat.regenerate(); return report(); },
  resume: async () => { await chat.resumeStream(); return report(); },
  // The answer that follows is sent by the chat and not awaited.
  approve: async ({ id }) => {
    await chat.addToolApprovalResponse({ id, approved: true });
    const answered = () => chat.messages.at(-1).parts.some((part) => part.state === "output-available");
    while (!(chat.status === "error" || (chat.status === "ready" && answered()))) await pause();
    return report();
  },
  begin: ({ text }) => { running = chat.sendMessage({ text }); },
  partial: async ({ length }) => {
    const size = () => chat.messages.at(-1)?.parts.map((part) => part.text ?? "").join("").length;
    while (!(chat.messages.at(-1)?.role === "assistant" && size() >= length)) await pause();
    return report();
  },
  stop: async () => { await transport.stopGeneration("chat-1"); await running; return report(); },
  finish: async () => { await running; return report(); },
  action: async ({ action }) => {
    const reader = (await transport.sendAction("chat-1", action)).getReader();
    while (!(await reader.read()).done);
    return report();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const call = JSON.parse(line);
  let output;
  try {
    output = { value: (await calls[call.call](call)) ?? null };
  } catch (error) {
    output = { error: { name: error.name, message: error.message, status: error.status ?? null } };
  }
  process.stdout.write(JSON.stringify(output) + "\n");
}
process.exit(0);
