// Browsers do not load the search index over file://. The search would never end, so the page shows how
// to open the site instead.
if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    const results = document.getElementById("mkdocs-search-results");
    if (results) {
      results.textContent =
        "The search does not work over file://. Run make docs-serve and open http://127.0.0.1:8000/.";
    }
  });
}
