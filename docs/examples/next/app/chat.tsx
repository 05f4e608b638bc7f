"use client";
import { useChat } from "@ai-sdk/react";
import { TriggerChatTransport } from "@trigger.dev/sdk/chat";
import { useState } from "react";

async function token(chatId: string): Promise<string> {
  const response = await fetch(`/api/gateway-token?chat=${encodeURIComponent(chatId)}`, { method: "POST" });
  const text = await response.text();
  if (response.ok && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(text)) return text; // a sign-in page is no token
  throw new Error(`no token: ${response.status}`);
}

function transport(id: string) {
  const made = new TriggerChatTransport({
    task: "my-chat",
    baseURL: process.env.NEXT_PUBLIC_GATEWAY_URL!,
    accessToken: ({ chatId }) => token(chatId),
    startSession: async ({ chatId }) => {
      const response = await fetch(`/api/start-chat?chat=${encodeURIComponent(chatId)}`, { method: "POST" });
      if (!response.ok) throw new Error(`not started: ${response.status}`);
      return { publicAccessToken: await token(chatId) };
    },
    onSessionChange: (chatId, session) => {
      if (session?.lastEventId) sessionStorage.setItem(`last:${chatId}`, session.lastEventId);
    },
  });
  const last = sessionStorage.getItem(`last:${id}`); // else the first answer after a reload repeats the last one
  if (last) made.seedResumeCursor(id, last);
  return made;
}

export function Chat({ id }: { id: string }) {
  const [connection] = useState(() => transport(id));
  const { messages, sendMessage, status, error, stop } = useChat({ id, transport: connection });
  const [text, setText] = useState("");
  return (
    <section aria-label={id}>
      <div role="log">
        {messages.map((message) => (
          <p key={message.id}>
            <b>{message.role}</b> {message.parts.map((part) => (part.type === "text" ? part.text : "")).join("")}
          </p>
        ))}
      </div>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          sendMessage({ text });
          setText("");
        }}
      >
        <input aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} required />
        <button>Send</button>
        {status === "streaming" && <button type="button" onClick={stop}>Stop</button>}
      </form>
      <p role="status">{error ? error.message : status}</p>
    </section>
  );
}
