// Accept, modify, reject by key: one key, one confirmation. The word that somebody is looking.
"use strict";

(() => {
  const root = document.querySelector("[data-case]");
  if (root.dataset.acknowledged === "no" && root.dataset.person) {
    fetch(`/api/cases/${root.dataset.case}/acknowledge`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: "{}",
    }).then((answer) => { if (answer.ok) document.getElementById("acknowledge")?.remove(); });
  }
  // Somebody else's claim, review or a newer result: said here, before a review is refused for it.
  const changed = document.getElementById("changed");
  new EventSource("/events").addEventListener("change", async () => {
    const answer = await fetch(`/api/cases/${root.dataset.case}?fragment=1`);
    if (!answer.ok) return;
    const { result, reviews, summary } = await answer.json();
    const state = `${result.id} ${reviews[0]?.review.id ?? ""} ${summary.claimed_by ?? ""}`;
    if (state === root.dataset.state) return;
    const link = document.createElement("a");
    link.href = location.pathname;
    link.textContent = "Show it";
    changed.replaceChildren("This case has changed meanwhile. ", link);
    changed.hidden = false;
  });
  const form = document.getElementById("review");
  const dialog = document.getElementById("confirm");
  let then = () => {};
  const ask = (words, act) => {
    document.getElementById("confirm-words").textContent = words;
    then = act;
    dialog.showModal();
    document.getElementById("confirm-yes").focus();
  };
  document.getElementById("confirm-yes").addEventListener("click", () => { dialog.close(); then(); });
  document.getElementById("confirm-no").addEventListener("click", () => dialog.close());

  const modify = document.getElementById("modify");
  const button = (name) => form?.querySelector(`button.${name}`);
  // Accepting would drop what was changed here: say so by letting only "Modify" go.
  modify?.addEventListener("change", () => { button("accept").disabled = true; });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input:not([type=radio]):not([type=checkbox]):not([type=range]), textarea, select") || dialog.open) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "u") document.getElementById("back").click();
    if (!form) return;
    if (event.key === "a" && !button("accept").disabled) ask("Accept what the box said?", () => form.requestSubmit(button("accept")));
    if (event.key === "r") ask("Reject what the box said?", () => form.requestSubmit(button("reject")));
    if (event.key === "m") {
      if (button("accept").disabled) ask("Send the changes?", () => form.requestSubmit(button("modify-button")));
      else modify.querySelector("input:checked, select")?.focus();
    }
  });
  document.getElementById("report")?.addEventListener("submit", (event) => {
    if (event.submitter?.value !== "sign" || event.submitter.dataset.sure) return;
    event.preventDefault();
    ask("Sign? A signed text is not changed any more; later words are addenda.", () => {
      event.submitter.dataset.sure = "yes";
      event.target.requestSubmit(event.submitter);
    });
  });
})();
