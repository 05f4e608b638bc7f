"use client";
import { useState } from "react";
import { Chat } from "./chat";
import { afterSignOut, useSessions } from "./sessions";

export default function Page() {
  const [user, setUser] = useState("");

  async function sign(name: string) {
    await fetch(`/api/sign-in?user=${name}`, { method: "POST" });
    await afterSignOut(); // nothing of the person before stays on the page
    setUser(name);
  }

  return (
    <main>
      <p>
        {["ann", "bob"].map((name) => (
          <button key={name} onClick={() => sign(name)}>Sign in as {name}</button>
        ))}
        {user && <button onClick={() => sign("")}>Sign out</button>}
      </p>
      {user && <Chats key={user} />}
    </main>
  );
}

function Chats() {
  const { data, error } = useSessions();
  const [open, setOpen] = useState("");
  if (!data) return <p role="status">{error ? error.message : "Loading …"}</p>;
  return (
    <>
      <ul>
        {data.data.map((session: { id: string; externalId: string; closedAt: string | null }) => (
          <li key={session.id}>
            <button onClick={() => setOpen(session.externalId)}>
              {session.externalId} {session.closedAt ? "closed" : "open"}
            </button>
          </li>
        ))}
      </ul>
      {open && <Chat key={open} id={open} />}
    </>
  );
}
