// Objects, strings and buffers, whose sum is asked for, before and after all of them are replaced.
const objects = [];
for (let i = 0; i < 200000; i++) objects.push({ number: i, text: "x" + i });
const bytes = Buffer.alloc(20e6, 7);
const table = new Map(objects.map((each) => [each.text, each]));

function check() {
  let total = 0;
  for (const each of objects) total += each.number + each.text.length;
  for (let at = 0; at < bytes.length; at += 4096) total += bytes[at];
  for (const [key, each] of table) total += key === each.text ? 1 : -1e9;
  return total;
}

function churn() {
  const before = check();
  for (let round = 0; round < 10; round++) {
    const others = [];
    for (let i = 0; i < 50000; i++) others.push({ pair: [i, i] });
    global.gc();
    if (others[49999].pair[1] !== 49999) return "an object has changed";
    for (let i = 0; i < objects.length; i++) objects[i] = { ...objects[i] };
    if (new Uint8Array(5e6).some((each) => each !== 0)) return "a new array is not zero";
  }
  return check() === before ? "same" : "the sum has changed";
}

console.log("ready");
require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => console.log(line === "churn" ? churn() : check()));
