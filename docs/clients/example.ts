// What an application does with the client: node example.js URL CONVERSATION

import { Fastpaca } from "./fastpaca.js";

declare const process: { argv: string[]; env: Record<string, string | undefined> };

const [url, conversation] = process.argv.slice(2);
const client = new Fastpaca(url, process.env.FASTPACA_API_KEY);
await client.put(conversation, { token_budget: 400 });

for (let number = 1; number <= 30; number++) {
  const question = { role: "user", content: `Question ${number}: how many of item ${number} are in stock?` };
  await client.append(conversation, question, `question-${number}`);
}

// A real one asks a model.
await client.compact(conversation, async (messages) => `${messages.length} questions about stock`, 5);
const window = await client.window(conversation);
console.log("window:", window.messages.length, "messages,", window.messages[0].parts[0].text);

const seen: number[] = [];
for await (const frame of client.follow(conversation, 0)) {
  if (frame.type === "event") seen.push(frame.seq);
  if (frame.type === "compaction") {
    const inOrder = seen.length === 30 && seen.every((seq, at) => seq === at + 1);
    console.log("stream:", inOrder, "compaction of", JSON.stringify(frame.range));
    break;
  }
}
