/* How a search is ranked; Sphinx puts this behind its own search.
 *
 * Sphinx shows a page only if every word of a query is on it, and people ask in sentences. Here a page
 * gathers the rarity of each word that it has: more in a heading, most in its title. A long page has many
 * words by chance, so its body counts for less. The reference comes after lessons and tasks.
 */
Search.performTermsSearch = (searchTerms, excludedTerms) => {
  const HEADING = 2, TITLE = 4, REFERENCE = 0.4, LEAST = 0.5;
  const { terms, titleterms, titles, docnames, filenames } = Search._index;
  const stemmer = new Stemmer();
  const has = (table, word) => Object.prototype.hasOwnProperty.call(table, word);
  const found = (table, word) => (has(table, word) ? [table[word]].flat() : []);

  const length = Array(docnames.length).fill(0); // different words of a page
  Object.values(terms).forEach((pages) => [pages].flat().forEach((page) => length[page]++));
  const usual = length.reduce((a, b) => a + b, 0) / length.length;
  const title = titles.map((text) =>
    new Set(splitQuery(text.toLowerCase()).map((word) => stemmer.stemWord(word))));
  const weight = docnames.map((name) =>
    name.includes("/") && !name.startsWith("experiments/") ? REFERENCE : 1);

  const known = (word) => has(terms, word) || has(titleterms, word);
  const longer = (word) => // what a word begins, where it is none itself
    Object.keys({ ...terms, ...titleterms }).filter((term) => term.startsWith(word));

  const scores = new Map();
  searchTerms.forEach((wanted) => {
    const words = known(wanted) ? [wanted] : wanted.length > 3 ? longer(wanted) : [];
    const body = new Set(words.flatMap((word) => found(terms, word)));
    const heads = new Set(words.flatMap((word) => found(titleterms, word)));
    const pages = new Set([...body, ...heads]);
    const rarity = Math.log(1 + docnames.length / pages.size);
    pages.forEach((page) => {
      const isTitle = words.some((word) => title[page].has(word));
      const long = Math.sqrt(Math.max(1, length[page] / usual));
      const worth = isTitle ? TITLE : heads.has(page) ? HEADING : 1 / long;
      scores.set(page, (scores.get(page) || 0) + rarity * worth * weight[page]);
    });
  });
  excludedTerms.forEach((word) =>
    [...found(terms, word), ...found(titleterms, word)].forEach((page) => scores.delete(page)));

  const best = Math.max(...scores.values());
  return [...scores]
    .filter(([, score]) => score >= LEAST * best)
    .map(([page, score]) =>
      [docnames[page], titles[page], "", null, score, filenames[page], SearchResultKind.text]);
};
