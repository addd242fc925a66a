for (const b of document.querySelectorAll("button.copy")) {
  b.hidden = false;
  b.addEventListener("click", async () => {
    const pre = b.parentElement.querySelector("code");
    try { await navigator.clipboard.writeText(pre.textContent); }
    catch { getSelection().selectAllChildren(pre); document.execCommand("copy"); }
    b.textContent = "copied"; setTimeout(() => { b.textContent = "copy"; }, 1500);
  });
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const d of closed) d.open = true;
});
addEventListener("afterprint", () => { for (const d of closed) d.open = false; });
