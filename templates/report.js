// The script of a report, which is inside it; the page of 08 loads it for the reports it shows.
// A click on a point shows its moment in the video, where there is one; Copy copies the sentence.
document.addEventListener("click", event => {
  const to = event.target.closest("[data-seconds]"), video = document.querySelector("video");
  if (to && video) {
    event.preventDefault(); video.pause(); video.currentTime = to.dataset.seconds;
    video.scrollIntoView({block: "center"}); video.focus();
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const text = document.getElementById(copy.dataset.copy);
    const done = () => { copy.textContent = "Copied"; };
    const select = () => { getSelection().selectAllChildren(text); document.execCommand("copy"); done(); };
    navigator.clipboard ? navigator.clipboard.writeText(text.textContent).then(done, select) : select();
  }
});
