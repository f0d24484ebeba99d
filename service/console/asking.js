// How a question is put to a model, for every part of the page alike.

export const STEPS = "Think step by step, one step a line. End with a line that starts with Answer:";

export const messagesOf = (question, wantsSteps) => [{ role: "user", content: wantsSteps ? `${question}\n${STEPS}` : question }];

export const EXAMPLES = [
  "There are 4 stones in the bag of Ben. Then Ben now owns 3 times the number of stones. Then Ben sells 5 stones. How many stones are in the bag now?",
  "Take the number 17, then add 18, then take away 9, then add 16. What number do you get?",
];
