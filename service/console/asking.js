// How a question is put to a model, for every part of the page alike.

export const STEPS = "Think step by step, one step a line. End with a line that starts with Answer:";

export const messagesOf = (question, wantsSteps) => [{ role: "user", content: wantsSteps ? `${question}\n${STEPS}` : question }];

export const EXAMPLES = [
  "Start with 12. Add 5. Multiply by 3. Subtract 4. What is the result?",
  "Start with 7. Multiply by 4. Add 9. Subtract 15. What is the result?",
];
